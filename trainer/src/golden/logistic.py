"""Golden values of multinomial logistic regression: python logistic.py > logistic.json (versions in "made_with")."""
import json, math, platform
import numpy as np, scipy, sklearn
from sklearn.linear_model import LogisticRegression

ROWS, COLUMNS, CLASSES = 60, 5, 4
x = np.array([[math.sin(1.1 * i + 0.6 * j) for j in range(COLUMNS)] for i in range(ROWS)])
y = np.array([(i * 7 // 3) % CLASSES for i in range(ROWS)])


def case(lam):
    # sklearn minimises |W|^2 / 2 + C * sum of cross entropies: the mean and lam / 2 * |W|^2, times N * C.
    model = LogisticRegression(C=1 / (lam * ROWS), tol=1e-12, max_iter=200000, solver="lbfgs").fit(x, y)
    w, b = model.coef_.T, model.intercept_ - model.intercept_.mean()
    logits = x @ w + b
    entropy = (np.log(np.exp(logits).sum(1)) - logits[np.arange(ROWS), y]).mean()
    weights = np.vstack([w, b])
    return {"lambda": lam, "weights": [[round(v, 9) for v in row] for row in weights.tolist()],
            "objective": round(float(entropy + lam / 2 * (w**2).sum()), 10)}


made_with = {"python": platform.python_version(), "scikit-learn": sklearn.__version__, "scipy": scipy.__version__, "numpy": np.__version__}
print(json.dumps({"made_with": made_with, "cases": [case(lam) for lam in (1.0, 0.01, 0.0001)]}, indent=1))
