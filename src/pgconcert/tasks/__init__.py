"""Task sharing: every instance of a service its fair share of the tasks, on every tick. No backend stands here.

What a task is (``task.py``), where tasks come from (``sources.py``), the port between a runner and its source
(``shift.py``) and those who keep it, the fair share (``balance.py``, pure), the runner.
"""
