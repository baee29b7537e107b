"""The evaluations by name: one commented dataclass each, whose fields are its settings and whose ``run`` does it."""

from eval.tasks.base import Task
from eval.tasks.classification import FewShotTest, Knn, Linear, Logistic
from eval.tasks.dense import Depth, Segmentation
from eval.tasks.parts import Fairness, LongTail
from eval.tasks.shift import CorruptionTest, Robustness
from eval.tasks.space import FeatureStats, Retrieval

TASKS: dict[str, type] = {
    task.name: task
    for task in (
        Knn, Linear, Logistic, FewShotTest, Retrieval, Robustness, CorruptionTest, LongTail, Fairness, Segmentation,
        Depth, FeatureStats,
    )
}  # fmt: skip

__all__ = ["TASKS", "Task"]
