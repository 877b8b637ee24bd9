"""Which of two answers people prefer, who do not know whose they are: draw → ask → ratings.sqlite → what was said. Light."""
