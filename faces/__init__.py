"""Faces: notebooks, training and a folder tool for labelled photos of faces.

Nothing is imported here, so that ``import faces`` is cheap and the runtime
(``faces.predict``) never pulls in torch.
"""

__version__ = "0.1.0"
