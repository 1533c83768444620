{{/*
What the monitoring objects share. Prometheus tells our series apart by four labels: namespace and pod, which its
operator sets, and release and component, which the monitors take from the pods' labels.
*/}}

{{/* (root, enabled, kind): "true" where an object is made: asked for, or auto and known to the cluster. */}}
{{- define "coffee-rt.monitoring.isMade" -}}
{{- if kindIs "bool" .enabled -}}
{{- if .enabled }}true{{ end -}}
{{- else if .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) -}}
true
{{- end -}}
{{- end }}

{{/* (root): the pods that serve metrics. The stores' own are their exporters' business. */}}
{{- define "coffee-rt.monitoring.selector" -}}
matchLabels:
  app.kubernetes.io/name: {{ include "coffee-rt.name" . }}
  app.kubernetes.io/instance: {{ .Release.Name }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [order-api, worker, aggregator, fanout, query-api, operator]
{{- end }}

{{- define "coffee-rt.monitoring.relabelings" -}}
- sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_instance]
  targetLabel: release
- sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component]
  targetLabel: component
{{- end }}

{{/* (root, name, labels): metadata of an object that belongs to no component. */}}
{{- define "coffee-rt.monitoring.metadata" -}}
name: {{ include "coffee-rt.fullname" .root }}{{ with .name }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "coffee-rt.labels" (dict "root" .root "component" "monitoring") | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* (root, rule): a rule of files/alerts for this release alone, with the numbers, labels and links of the values. */}}
{{- define "coffee-rt.monitoring.rule" -}}
{{- $values := .root.Values.monitoring -}}
{{- $expression := .rule.expr -}}
{{- range $name, $number := $values.prometheusRule.thresholds -}}
{{- $expression = regexReplaceAll (printf "[0-9.]+ # threshold: %s\\b" $name) $expression (printf "%v # threshold: %s" $number $name) -}}
{{- end -}}
{{- $own := printf "${1}{namespace=%q, release=%q, " .root.Release.Namespace .root.Release.Name -}}
{{- $expression = regexReplaceAll "\\b(coffee_rt_\\w+|up)\\{" $expression $own | replace ", }" "}" -}}
{{- $chosen := get $values.prometheusRule.alerts .rule.alert | default dict -}}
alert: {{ .rule.alert }}
expr: |
  {{- trim $expression | nindent 2 }}
{{- with $chosen.for | default .rule.for }}
for: {{ . }}
{{- end }}
labels:
  {{- range $name, $value := .rule.labels }}
  {{ $name }}: {{ (and (eq $name "severity") $chosen.severity) | default $value | quote }}
  {{- end }}
  {{- with $values.prometheusRule.alertLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  summary: {{ .rule.annotations.summary | quote }}
  description: {{ .rule.annotations.description | quote }}
  runbook_url: {{ $values.runbooksUrl }}/{{ .rule.alert }}.md
{{- end }}

{{/* (root, rule): "true" for a rule that can mean something here: the values may leave its alert out, its process may not
be run, or may be meant to be gone (KEDA takes workers without work to zero). */}}
{{- define "coffee-rt.monitoring.isWanted" -}}
{{- $values := .root.Values -}}
{{- $chosen := get $values.monitoring.prometheusRule.alerts .rule.alert | default dict -}}
{{- $mayBeGone := and (eq $values.autoscaling.backend "keda") (eq (int $values.worker.autoscaling.minReplicas) 0) -}}
{{- if not (or (eq (toString $chosen.enabled) "false") (and $mayBeGone (eq (toString .rule.labels.component) "worker"))) -}}
true
{{- end -}}
{{- end }}
