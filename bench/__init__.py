"""Side-by-side benchmarks of Luthier against its peers."""
