"""Models of other libraries as functions of parameters and inputs."""
