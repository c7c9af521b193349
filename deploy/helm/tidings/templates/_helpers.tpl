{{- define "tidings.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "tidings.selector" -}}
app.kubernetes.io/name: tidings
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tidings.labels" -}}
{{ include "tidings.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
{{- end }}

{{- define "tidings.secret" -}}
{{ .Values.backplane.existingSecret | default (printf "%s-backplane" (include "tidings.name" .)) }}
{{- end }}

{{/* What a drain takes at most: docs/operations.md. */}}
{{- define "tidings.terminationGrace" -}}
{{ add .Values.drain.deregisterDelay .Values.drain.wait .Values.drain.spread .Values.drain.grace 6 .Values.drain.margin }}
{{- end }}

{{/* What an API key or a certificate allows. */}}
{{- define "tidings.allowed" }}
name = {{ .name | toJson }}
scopes = {{ .scopes | toJson }}
{{- with .addresses }}
addresses = {{ . | toJson }}
{{- end }}
{{- with .pushesPerSecond }}
pushes_per_second = {{ . }}
{{- end }}
{{- end }}

{{/* The doors of a pod. The admin door is on its loopback unless it is scraped. */}}
{{- define "tidings.config" -}}
[public]
listen = "{{ .Values.listenAddress }}:8080"
url = {{ .Values.public.url | toJson }}
allowed_origins = {{ .Values.public.allowedOrigins | toJson }}
{{- with .Values.public.trustedProxies }}
trusted_proxies = {{ . | toJson }}
{{- end }}
{{- if .Values.public.proxyProtocol }}
proxy_protocol = true
{{- end }}
{{- if .Values.public.tlsSecret }}
[public.tls]
cert_file = "/tls/public/tls.crt"
key_file = "/tls/public/tls.key"
{{- end }}

{{ if .Values.service.tlsSecret -}}
[service]
listen = "{{ .Values.listenAddress }}:8081"
[service.tls]
cert_file = "/tls/service/tls.crt"
key_file = "/tls/service/tls.key"
{{- with .Values.service.clientAuth }}
client_ca_file = "/tls/service/ca.crt"
client_auth = {{ . | toJson }}
{{- end }}
{{- range .Values.service.clients }}
[[service.tls.clients]]
{{- include "tidings.allowed" . }}
{{- end }}
{{- else -}}
# Without TLS: inside the cluster, and only for who the NetworkPolicy lets in.
[service]
listen = "{{ .Values.listenAddress }}:8081"
insecure = true
{{- end }}

[admin]
listen = "{{ ternary .Values.listenAddress "127.0.0.1" .Values.metrics }}:8082"

# For the kubelet.
[probe]
listen = "{{ .Values.listenAddress }}:8083"

# url and secret come from a Secret, as variables.
[backplane]
kind = {{ .Values.backplane.kind | toJson }}

[drain]
deregister_delay = "{{ .Values.drain.deregisterDelay }}s"
wait = "{{ .Values.drain.wait }}s"
spread = "{{ .Values.drain.spread }}s"
grace = "{{ .Values.drain.grace }}s"
termination_grace = "{{ include "tidings.terminationGrace" . }}s"
{{- range .Values.apiKeys }}

[[api_keys]]
{{- include "tidings.allowed" . }}
sha256 = {{ .sha256 | toJson }}
{{- end }}
{{- with .Values.extraConfig }}

{{ . | trim }}
{{- end }}
{{- end }}
