"""The lab: builds a network of namespaces, proves that a data plane is correct, then measures it.

A scenario (``scenarios/*.yaml``) is one claim. Its way through this package, from the file to the verdict:

    scenario.py   the file, validated          (agreement.py: what its fields must agree on)
    doctor.py     what this machine lacks for it
    topology.py   namespaces and links         (state.py remembers them, so that nothing is ever left behind)
    servers/      what answers                 (process.py starts, logs and ends every program)
    contenders/   what routes
    checks/       what must be true
    measure/      what is measured             (run.py interleaves the rounds)
    verdict.py    what is good enough
    results.py    what is kept: ``results/RUN_ID/run.json``
"""
