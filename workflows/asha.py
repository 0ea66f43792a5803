"""ASHA with a model-based searcher, and a measured answer to the question whether ASHA would stop the winner.

    uv run cvtune run workflows/asha.py

Twelve control trials are drawn before any result is known and are never stopped. From them the summary says how well
the score at each rung ranks the final scores. The rest is proposed by a tree-structured Parzen estimator.

Time: three minutes on two cores (measured: 172 s for 60 trials and 374 epochs). Expect: a best validation accuracy of
0.996, and that ASHA loses little here; measured, it would have stopped the best control in none of 1000 orders of
arrival, though the rank correlation with the final score was only 0.46 at epoch 1 and 0.58 at epoch 3.
"""

from cvtune import ASHA, TPE, Budget, LogUniform, Recipe, Source, Study, Uniform, space


def study() -> Study:
    return Study(
        name="asha",
        data=Source(source="digits"),
        recipe=Recipe().replace(
            {
                "data.image_size": 16,
                "augment.flip": "none",  # a mirrored digit is another digit
                "model.width": 8,
                "max_epochs": 9,
            }
        ),
        space=space(
            {
                "augment.strength": Uniform(0, 1),
                "regularize.strength": Uniform(0, 1),
                "optim.lr": LogUniform(1e-3, 3e-2),
            }
        ),
        scheduler=ASHA(grace_epochs=1, reduction_factor=3, controls=12),
        searcher=TPE(),
        budget=Budget(trials=48),
    )
