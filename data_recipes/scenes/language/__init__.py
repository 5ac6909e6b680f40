"""How people talk about the scenes world: questions, requests to draw, changes, small talk; endless and seeded.

Read in this order: grammar.py (forms, and how they are typed), words.py (English for things), facts.py (what is
beyond doubt in a scene), questions.py with question_forms.py, requests.py, edits.py, talk.py, prompts.py, and
conversations.py, which puts them together.
"""

from .conversations import TASKS, Step, conversation, story
from .prompts import PROMPTS
from .questions import Question, ask

__all__ = ["PROMPTS", "TASKS", "Question", "Step", "ask", "conversation", "story"]
