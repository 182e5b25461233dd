"""On PYTHONPATH, lets a CUDA build of torchvision be imported beside CPU torch.

Such a build cannot load its compiled operators, and its import ends at the first that it describes to torch. Declaring
the operators beforehand lets the rest of torchvision, all that MONAI Label imports of it, work.
"""

import sys


class DeclareOperators:
    """Finds nothing, but declares the operators when torchvision is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        """Give None: the usual finders go on from here."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


FINDER = DeclareOperators()
sys.meta_path.insert(0, FINDER)
