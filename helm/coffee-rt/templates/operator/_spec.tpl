{{/* (root): the spec of the release's own OrderPipeline: what the chart knows, under what operator.pipeline.spec says. Where
the pods are scaled on External metrics, or by nobody, floors are off. */}}
{{- define "coffee-rt.pipelineSpec" -}}
{{- $isFloors := eq .Values.autoscaling.backend "floors" -}}
{{- $worker := .Values.worker.settings -}}
{{- $spec := dict
  "partitions" (dict
    "daysAhead" ($worker.partitionDaysAhead | default 7 | int)
    "retentionDays" ($worker.retentionDays | default 400 | int))
  "ledger" (dict "marginSeconds" ($worker.compactMarginSeconds | default 3600 | int))
-}}
{{- range $key, $component := dict "worker" "workers" "fanout" "fanout" -}}
{{- $name := include "coffee-rt.componentName" (dict "root" $ "component" $key) -}}
{{- $isScaled := (index $.Values $key).autoscaling.enabled -}}
{{- $pods := dict "deployment" $name "floor" (dict "enabled" (and $isFloors $isScaled)) -}}
{{- if $isScaled -}}
{{- $_ := set $pods "autoscaler" $name -}}
{{- end -}}
{{- $_ := set $spec $component $pods -}}
{{- end -}}
{{- $_ := set $spec.fanout.floor "sessionsPerPod" (int .Values.autoscaling.sessionsPerFanout) -}}
{{- mergeOverwrite $spec (deepCopy .Values.operator.pipeline.spec) | toYaml -}}
{{- end }}
