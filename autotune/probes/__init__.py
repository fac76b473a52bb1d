"""Small compiles that teach how the amounts of a user's step scale: which are worth making, and the laws they show."""
