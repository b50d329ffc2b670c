"""Images whose every pixel has a class: pairs of image and mask files, classes and colours, paired transforms."""
