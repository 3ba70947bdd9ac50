"""What runs inside the sandbox as PID 1, standard library only; the image builder copies it into every image."""
