"""Transfer learning on a folder of pictures: heads.py (the nets), data.py (what goes in), train.py, evaluate.py, predict.py."""
