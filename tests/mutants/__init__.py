"""Do the packet tests bite? Each of mutants.toml's mistakes is made in a copy of the tree, and tests/packets must fail.

    mutants.toml   the mistakes
    catalogue      they, read
    workshop       one of them in a copy: compiled, loaded, tested
    __main__       all of them, which takes half an hour (`make mutants`), and docs/mutants.md

In CI every mistake must still apply, and a few are tried (test_mutants.py).
"""
