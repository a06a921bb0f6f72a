"""The demo: a small pretrained model and a TVSum-format data set that the project makes itself, for machines with no GPU."""
