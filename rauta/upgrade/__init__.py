"""What outlives a process: pinned maps, which the next one uses, or brings into its own layout."""
