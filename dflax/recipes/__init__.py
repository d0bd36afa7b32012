"""Methods of the literature in a few lines each, made of public names: to use and to start from."""

from dflax.recipes.krum_after_nnm import krum_after_nnm
