"""Report placeholder."""


def write_report(*a):
    raise SystemExit(0)
