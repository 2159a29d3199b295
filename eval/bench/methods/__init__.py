"""Which methods to take, at what keep: the sweep, its table, the page and the advice."""
