"""Images with objects: COCO's file format, the generated shapes, and what is done to both before a network sees them."""
