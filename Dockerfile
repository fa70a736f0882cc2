FROM python:3.11-slim AS build
WORKDIR /source
COPY setup.cfg pyproject.toml README.md ./
COPY customer_actors customer_actors
COPY scheduler scheduler
RUN ["pip", "wheel", "--no-cache-dir", "--wheel-dir=/wheels", "."]

FROM python:3.11-slim
RUN ["useradd", "--uid=10001", "--create-home", "customer-actors"]
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    ["pip", "install", "--no-cache-dir", "--no-index", "--find-links=/wheels", "customer-actors"]
ENV PYTHONUNBUFFERED=1
# A number, so that orchestrators can see that it is not root.
USER 10001
WORKDIR /home/customer-actors
CMD ["customer-actors", "--help"]
