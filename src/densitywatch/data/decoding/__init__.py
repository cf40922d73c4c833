"""From untrusted bytes to uint8 arrays, in a process of its own with little memory and little time.

Start with images.py."""
