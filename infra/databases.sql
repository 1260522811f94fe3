-- Run once by the postgres image, on an empty volume; `prefect` is the database that it makes by itself.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
