"""Experiments: arms x seeds x stages, each result kept on disk, laid side by side in a report."""

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait
