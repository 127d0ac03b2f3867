"""Transfer learning on a folder of images of one's own.

heads.py                        the models: a backbone of keras.applications and a new head
data.py                         what goes in, from image_part.py, augmentation.py, batches.py, leaks.py
transfer.py, settings.py        how it is trained, and every setting
train.py, evaluate.py, predict.py, export.py, describe.py   the commands
"""
