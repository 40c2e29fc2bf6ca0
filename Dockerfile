# The operator's and the trainer's images: `docker build --target operator|trainer .`
#
# Behind a proxy with a certificate authority or a package index of its own, hand them in as build secrets (`ca`,
# `pip.conf`, `uv.toml`); they never become part of an image. `ldj` does so by itself.

FROM debian:trixie-slim AS python
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
# Some libraries look their user up by its number.
RUN echo 'nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'nonroot:x:65532:' >> /etc/group
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

FROM python AS packages
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
COPY <<'SCRIPT' /usr/local/bin/with-settings
#!/bin/sh
# Runs a command with the settings of the machine that builds, where there are any.
[ -s /run/secrets/ca ] && export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca
[ -s /run/secrets/pip.conf ] && export PIP_CONFIG_FILE=/run/secrets/pip.conf
[ -s /run/secrets/uv.toml ] && export UV_CONFIG_FILE=/run/secrets/uv.toml
exec "$@"
SCRIPT
RUN chmod +x /usr/local/bin/with-settings
COPY requirements/uv.txt /requirements/uv.txt
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip.conf \
    python3 -m venv /opt/uv \
 && with-settings /opt/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check \
      --require-hashes --requirement /requirements/uv.txt
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never

FROM packages AS operator-packages
COPY requirements/operator.txt /requirements/operator.txt
RUN --mount=type=secret,id=ca --mount=type=secret,id=uv.toml --mount=type=cache,target=/tmp/.cache/uv \
    /opt/uv/bin/uv venv --quiet --python /usr/bin/python3 /opt/venv \
 && VIRTUAL_ENV=/opt/venv with-settings /opt/uv/bin/uv pip sync --quiet --system-certs --compile-bytecode \
      --require-hashes /requirements/operator.txt

FROM packages AS trainer-packages
COPY requirements/trainer.txt /requirements/trainer.txt
RUN --mount=type=secret,id=ca --mount=type=secret,id=uv.toml --mount=type=cache,target=/tmp/.cache/uv \
    /opt/uv/bin/uv venv --quiet --python /usr/bin/python3 /opt/venv \
 && VIRTUAL_ENV=/opt/venv with-settings /opt/uv/bin/uv pip sync --quiet --system-certs --compile-bytecode \
      --require-hashes /requirements/trainer.txt

# The project's own code comes compiled and last: a change of it makes one thin layer anew.
FROM python AS operator-source
COPY crds/lora_dpo_api /app/lora_dpo_api
COPY operator/lora_dpo_operator /app/lora_dpo_operator
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app

FROM python AS trainer-source
COPY crds/lora_dpo_api /app/lora_dpo_api
COPY trainer_image/lora_dpo_trainer /app/lora_dpo_trainer
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app

FROM python AS operator
COPY --from=operator-packages /opt/venv /opt/venv
COPY --from=operator-source /app /app
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "lora_dpo_operator"]

FROM python AS trainer
COPY --from=trainer-packages /opt/venv /opt/venv
COPY --from=trainer-source /app /app
# Levanter's trackers look for git at import, and the image has none.
ENV GIT_PYTHON_REFRESH=quiet
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "lora_dpo_trainer"]
