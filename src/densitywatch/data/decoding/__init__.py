"""From untrusted bytes to uint8 arrays, in a child process with little memory and little time.

Start with images.py."""
