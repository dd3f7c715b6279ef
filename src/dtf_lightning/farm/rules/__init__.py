"""What a farm decides: which task runs on which workers. Pure functions and states, standard library only."""
