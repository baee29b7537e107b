"""All parts of the check, in the order in which they run."""

from benchmarks.gpu.parts import TEST_FILES, Part


def all_parts() -> list[Part]:
    """Every part, in order."""
    parts = [
        Part(f"tests-{name}", "tests", name, "suite:run_tests", {"file": f"tests/gpu/test_{name}.py"})
        for name in TEST_FILES
    ]
    parts += [
        Part("kmeans-nearest", "kmeans", "nearest of 10,000 centroids, d 1024", "kmeans:nearest"),
        Part("kmeans-faiss", "kmeans", "the same with faiss", "kmeans:nearest_faiss"),
        Part("kmeans-flash", "kmeans", "the same with flash-kmeans", "kmeans:nearest_flash"),
        Part("kmeans-blocks", "kmeans", "our kernel by block shape", "kmeans:block_shapes"),
        Part("kmeans-fit", "kmeans", "a whole fit from disk", "kmeans:whole_fit", {}, 120.0),
        Part("embed", "embed", "ViT-L/14 at 224 pixels", "embedding:embed"),
    ]
    for name in ("ViT-L/16", "ViT-S/16"):
        for compiled in (False, True):
            label = f"{name}, {'compiled' if compiled else 'eager'}"
            key = f"pretrain-{name[4].lower()}-{'compiled' if compiled else 'eager'}"
            options = {"model": name, "compiled": compiled}
            parts.append(Part(key, "pretrain", label, "training:pretraining", options, 90.0))
    for compiled in (True, False):
        label = "compiled" if compiled else "eager"
        parts.append(Part(f"lm-{label}", "lm", label, "training:language_model", {"compiled": compiled}, 90.0))
    parts += [
        Part(f"images-seed{seed}", "images", f"seeds 0 to {seed}", "images:experiment", {"seed": seed}, 180.0)
        for seed in range(3)
    ]
    return parts
