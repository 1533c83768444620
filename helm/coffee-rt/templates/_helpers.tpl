{{/*
Names, labels and small objects. What the pods of all processes share is in _pods.tpl, their variables in _settings.tpl, their
scaling in _scaling.tpl; what they need of the stores (addresses, limits, peers) in _stores.tpl, what must add up in _checks.tpl.

Most helpers take a dict of `root` (the template's own context $), `component` (order-api, worker, aggregator, fanout,
query-api, operator, migrate, audit, valkey, postgresql) and, where they need the process's values, `values`.
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

{{/* (root, component): labels of pods; those of other objects have more, which must not roll pods. */}}
{{- define "coffee-rt.podLabels" -}}
{{ include "coffee-rt.selectorLabels" . }}
app.kubernetes.io/part-of: coffee-rt
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with (.values | default dict).podLabels }}
{{ toYaml . }}
{{- end }}
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
{{- /* The tag stays beside a digest: skaffold knows its pods by both. */ -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- with .digest }}@{{ . }}{{ end -}}
{{- end -}}
{{- end }}

{{/* (root): the Secret with the first API key. */}}
{{- define "coffee-rt.apiKeySecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-api-key" (include "coffee-rt.fullname" .)) -}}
{{- end }}

{{/* (root): the ConfigMap with view definitions; empty when there are none. */}}
{{- define "coffee-rt.viewsConfigMap" -}}
{{- if .Values.views.existingConfigMap -}}
{{ .Values.views.existingConfigMap }}
{{- else if .Values.views.definitions -}}
{{ include "coffee-rt.fullname" . }}-views
{{- end -}}
{{- end }}

{{/* (root, component, values) */}}
{{- define "coffee-rt.serviceAccountName" -}}
{{- $account := .values.serviceAccount | default (dict "create" true) -}}
{{- $account.name | default (ternary (include "coffee-rt.componentName" .) "default" $account.create) -}}
{{- end }}

{{/* (root, component, values) */}}
{{- define "coffee-rt.serviceAccount" -}}
{{- $account := .values.serviceAccount | default (dict "create" true) -}}
{{- if $account.create }}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "coffee-rt.metadata" (dict "root" .root "component" .component "name" (include "coffee-rt.serviceAccountName" .) "annotations" $account.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end }}
