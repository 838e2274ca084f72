"""hekaton: pretrain large language models on PyTorch, with every choice open to a plugin.

Start reading at :mod:`hekaton.trainer` for the way of a run; to write a plugin, at
:mod:`hekaton.contributions`.
"""

__version__ = "0.1.0"
