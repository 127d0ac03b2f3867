"""Transfer learning on a folder of images of one's own.

heads.py, backbones.py          the models: a backbone of keras.applications or of this library, and a new head
backbone_weights.py             where the weights of a backbone come from
data.py                         what goes in, from oxford102.py, image_part.py, augmentation.py, batches.py, leaks.py
transfer.py, settings.py        how it is trained, and every setting; features.py, transfer_facts.py, work.py
train.py, evaluate.py, predict.py, export.py, describe.py   the commands
"""
