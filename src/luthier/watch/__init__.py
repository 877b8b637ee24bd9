"""What is wrong with the machine, and what a failure means. No torch: a broken installation must be able to say that it is one."""
