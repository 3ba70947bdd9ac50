"""The packages that requests ask for: resolved and installed in a sandbox of their own, kept as layers, mounted again.

`specs` judges what was asked, `provider` finds or makes the layer, `installing` is the host's side of the sandbox that
installs, `registry` all that this sandbox can reach, `cache` what is kept on disk.
"""
