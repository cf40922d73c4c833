"""Groups of images that belong together, such as the frames of one scene. Start with choose.py."""
