"""Consolidation: what keeps earlier tasks while new ones are learned."""

from keras_psp.consolidation.consolidation import Consolidation
from keras_psp.consolidation.cosine_each_task import CosineEachTask
from keras_psp.consolidation.end_task import EndTask
from keras_psp.consolidation.ewc import EWC
from keras_psp.consolidation.freeze import Freeze
from keras_psp.consolidation.gram import Gram
from keras_psp.consolidation.synaptic_intelligence import SynapticIntelligence

__all__ = [
    "Consolidation",
    "CosineEachTask",
    "EWC",
    "EndTask",
    "Freeze",
    "Gram",
    "SynapticIntelligence",
]
