{{/*
Names, labels and what the pods of all processes share.

Most helpers take a dict of `root` (the template's own context $), `component` (order-api, worker, aggregator, fanout,
query-api, operator, migrate, valkey, postgresql) and, where they need the process's values, `values`.

_stores.tpl gives, for both stores and all their modes:
  coffee-rt.stores.env            (root)  EnvVars COFFEE_RT_REDIS_URL, COFFEE_RT_DATABASE_URL and, where there is one,
                                          COFFEE_RT_DATABASE_REPLICA_URL, each by secretKeyRef
  coffee-rt.valkey.maxmemoryBytes (root)  bytes one Valkey may hold (0: not known, external)
  coffee-rt.valkey.primaries      (root)  servers that share the streams (1, or cluster.primaries)
*/}}

{{- define "coffee-rt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Prefix of all names: at most 40 characters, so that the longest suffix and a StatefulSet's own fit into 63. */}}
{{- define "coffee-rt.fullname" -}}
{{- $name := include "coffee-rt.name" . -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- end -}}
{{- if gt (len $full) 40 -}}
{{- $full = printf "%s-%s" (trunc 31 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- end -}}
{{- $full -}}
{{- end }}

{{/* (root, component) */}}
{{- define "coffee-rt.componentName" -}}
{{- printf "%s-%s" (include "coffee-rt.fullname" .root) .component -}}
{{- end }}

{{/* (root, component): what selectors match; never changed after the install. */}}
{{- define "coffee-rt.selectorLabels" -}}
app.kubernetes.io/name: {{ include "coffee-rt.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* (root, component) */}}
{{- define "coffee-rt.labels" -}}
{{ include "coffee-rt.selectorLabels" . }}
app.kubernetes.io/part-of: coffee-rt
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (root, component): name, labels and annotations of an object of a component; `name` and `annotations` replace and add. */}}
{{- define "coffee-rt.metadata" -}}
name: {{ .name | default (include "coffee-rt.componentName" .) }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "coffee-rt.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* (root): the image of all processes. */}}
{{- define "coffee-rt.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What every pod of the release runs under: the restricted Pod Security Standard. */}}
{{- define "coffee-rt.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "coffee-rt.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
