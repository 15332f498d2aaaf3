"""A reward of your own, as TRL calls it: one number for each completion; None leaves that completion out."""


def shows_work(completions, answer, **columns):
    """0.2 for two lines of work or more before a boxed answer. Every other column of the data is in `columns`."""
    return [0.2 if "\\boxed{" in text and text.count("\n") >= 2 else 0.0 for text in completions]


# In the recipe beside this file:  rewards: [{name: accuracy}, {name: my_reward.py:shows_work}]
