"""A judge that costs seconds: heights learnt from the labels of the subset alone. Which tiles are worth a survey?

No pretraining is asked about: colours and textures of small cells, made by hand, stand where a backbone's maps would,
under the linear head in closed form (`satellite.ridge`). It answers what a curated subset is worth where every tile of
it is labelled, which is another question than the paper's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CELL = 8  # pixels
Maps = list[tuple[Float[Tensor, "b d g g"], None]]


class HandmadeMaps(nn.Module):
    """Pictures (b, c, s, s) to one map of features, a cell of 8 x 8 pixels each; nothing is learnt.

    Of each cell: mean, deviation and slope of the bands; their means and deviations over the 3 x 3 cells around it; and
    the mean of all over the tile, so that a cell knows what ground it is part of.
    """

    def forward(self, images: Float[Tensor, "b c s s"]) -> Maps:
        b, c, side, _ = images.shape
        g = side // CELL
        cells = images[:, :, : g * CELL, : g * CELL].reshape(b, c, g, CELL, g, CELL)
        slope = cells.diff(dim=3).abs().mean((3, 5)) + cells.diff(dim=5).abs().mean((3, 5))
        own = torch.cat([cells.mean((3, 5)), cells.std((3, 5), correction=0), slope], 1)
        around = F.unfold(F.pad(own, (1, 1, 1, 1), mode="replicate"), 3).reshape(b, own.shape[1], 9, g, g)
        whole = own.mean((2, 3), keepdim=True).expand_as(own)
        return [(torch.cat([own, around.mean(2), around.std(2, correction=0), whole], 1), None)]
