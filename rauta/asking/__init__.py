"""What routers ask the agents: whose a lost flow is, and whether they are there."""
