"""How `Net` meets a recipe, for `lightning.py`: what is which argument, and which logged name is which metric."""

from lightning_net import Net

from cvtune.lightning import lightning_loop

train = lightning_loop(
    Net,
    arguments={"learning_rate": "optim.lr", "channels": "model.width", "dropout": "regularize.dropout"},
    metrics={"val_loss": "val_loss", "val_acc": "val_accuracy"},
)
