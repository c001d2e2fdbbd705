"""Golden values of comparisons, average precision and nearest neighbours: python evaluation.py > evaluation.json
(versions in "made_with")."""
import json, math, platform
import numpy as np, scipy, sklearn
from scipy.stats import norm, permutation_test
from sklearn.neighbors import KNeighborsClassifier

# Two classifiers of 60 images, one wrong on every fifth, the other on every third.
labels = np.array([int(i % 4 == 0) for i in range(60)])
first, second = (np.array([float(i % n != 0) for i in range(60)]) for n in (5, 3))


def comparison(metric):
    if metric == "top1":
        weight, groups = np.full(60, 1 / 60), np.zeros(60, int)
    else:
        weight, groups = np.array([1 / (2 * (labels == c).sum()) for c in labels]), labels
    a, b = weight * first, weight * second
    difference = (a - b).sum()
    test = permutation_test((a, b), lambda x, y, axis: (x - y).sum(axis), permutation_type="samples", vectorized=True,
                            n_resamples=1_000_000, random_state=1)
    variance = sum((groups == g).sum() * np.var((a - b)[groups == g], ddof=1) for g in set(groups))
    margin = norm.ppf(0.975) * math.sqrt(variance)
    return {"metric": metric, "difference": difference, "low": difference - margin, "high": difference + margin,
            "p_value": float(test.pvalue)}


def map11():
    score = np.array([[math.sin(1.7 * i + 2.3 * c + 0.3 * (i * c)) for c in range(4)] for i in range(40)])
    score = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    label = np.array([(i * 7 // 3) % 4 for i in range(40)])
    values = []
    for c in range(4):
        hit = (label == c)[np.argsort(-score[:, c], kind="stable")]
        recall, precision = np.cumsum(hit) / hit.sum(), np.cumsum(hit) / np.arange(1, 41)
        values.append(np.mean([precision[recall >= r - 1e-12].max() for r in np.arange(11) / 10]))
    return float(np.mean(values))


def knn():
    wave = lambda rows, shift: [[math.sin(1.1 * i + 0.6 * j + shift) for j in range(6)] for i in range(rows)]
    vote = lambda distance: np.exp((1 - distance) / 0.1)
    model = KNeighborsClassifier(7, weights=vote, metric="cosine", algorithm="brute")
    model.fit(wave(40, 0.0), [i % 4 for i in range(40)])
    return {"scores": [[round(v, 9) for v in row] for row in model.predict_proba(wave(12, 0.2)).tolist()]}


made_with = {"python": platform.python_version(), "scikit-learn": sklearn.__version__, "scipy": scipy.__version__, "numpy": np.__version__}
print(json.dumps({"made_with": made_with, "comparisons": [comparison(m) for m in ("top1", "mean_per_class")],
                  "map11": map11(), "knn": knn()}, indent=1))
