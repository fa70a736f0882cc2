"""The whole service as its users run it: real processes, a real RabbitMQ, a real PostgreSQL."""
