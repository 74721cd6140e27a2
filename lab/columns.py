"""What is in samples.parquet, and so in what ``lab.load`` returns: one row for each number of each sample.

Imports nothing but the standard library: ``lab.load`` shows this as its documentation before pandas is there.
"""

COLUMNS = {
    "run": ("string", "the run's id"),
    "scenario": ("string", "its scenario"),
    "started": ("float64", "when the sample began, seconds since the epoch"),
    "cell": ("string", "values of the parameters that vary, JSON"),
    "round": ("int64", "from 1"),
    "position": ("int64", "place of the contender in the round's order, from 0"),
    "contender": ("string", "or reference"),
    "measure": ("string", "its name in the scenario"),
    "layer": ("string", "bpf, veth or http"),
    "quantity": ("string", "which number of the sample; empty for the measure's own"),
    "unit": ("string", "of `value`"),
    "better": ("string", "higher, lower or neither"),
    "instrument": ("string", "what measured, with its version"),
    "scale": ("int64", "1, or 2 for samples with twice the work, which only test the instrument"),
    "value": ("float64", "the number"),
    "valid": ("bool", "whether it is what was asked for"),
    "reason": ("string", "why it is not"),
    "flags": ("string", "what disturbed it in spite of retries; empty: nothing"),
    "requests": ("int64", "made while watched, warm-up included; null if it made none"),
    "generator": ("float64", "how busy the generator was, 0 to 1; null if unknown"),
    "histogram": ("string", "all latencies (HdrHistogram V2, base64, ns), beside the measure's own quantity"),
    "details": ("string", "whatever else the instrument said, JSON"),
}
"""by name: type, as Arrow calls it, and meaning"""

PARAMETER = "param_"
"""``lab.load`` adds a column for each parameter of the scenarios, its name with this in front"""


def described() -> str:
    """All columns as text, a line each."""
    width = max(map(len, COLUMNS))
    lines = ["{:<{}}  {:<7}  {}".format(name, width, kind, meaning) for name, (kind, meaning) in COLUMNS.items()]
    return "\n".join("        " + line for line in lines)
