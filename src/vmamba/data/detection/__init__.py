"""Images with objects: COCO's file format, the generated shapes, and what is done to both for a network."""
