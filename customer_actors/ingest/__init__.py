"""Where events come in: RabbitMQ queues, files and standard input."""
