{{/* How many pods: autoscalers on CPU, on External metrics, by KEDA; and how many may be away. */}}

{{/* (root, component, values) */}}
{{- define "coffee-rt.podDisruptionBudget" -}}
{{- if .values.pdb.enabled }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "coffee-rt.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .values.pdb.maxUnavailable }}
  # A pod that is not ready serves nobody: it must not hold up a drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "coffee-rt.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* (root, component, values, scale): an HPA on CPU, and on `scale` where the backend is prometheus-adapter.

An upgrade writes minReplicas again over a floor that the operator has raised; the operator's next look is seconds later, and
the slow way down (behavior) covers the moment between. */}}
{{- define "coffee-rt.autoscaler" -}}
{{- with .values.autoscaling }}
{{- if .enabled }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "coffee-rt.metadata" $ | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "coffee-rt.componentName" $ }}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .targetCPUUtilizationPercentage }}
    {{- if and $.scale (eq $.root.Values.autoscaling.backend "prometheus-adapter") }}
    - type: External
      external:
        metric:
          name: {{ $.scale.metric }}
          selector:
            matchLabels:
              release: {{ $.root.Release.Name }}
        target:
          type: AverageValue
          averageValue: {{ $.scale.perPod | quote }}
    {{- end }}
  behavior:
    {{- toYaml .behavior | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, component, values, scale): KEDA's object on CPU and a Prometheus query. While Prometheus is away it holds what
there is, but one pod at least: pending work is never scaled away. */}}
{{- define "coffee-rt.scaledObject" -}}
{{- with .values.autoscaling }}
{{- if .enabled }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "coffee-rt.metadata" $ | nindent 2 }}
spec:
  scaleTargetRef:
    name: {{ include "coffee-rt.componentName" $ }}
  minReplicaCount: {{ .minReplicas }}
  maxReplicaCount: {{ .maxReplicas }}
  pollingInterval: {{ $.root.Values.autoscaling.keda.pollingInterval }}
  cooldownPeriod: {{ $.root.Values.autoscaling.keda.cooldownPeriod }}
  fallback:
    failureThreshold: 3
    replicas: {{ max 1 .minReplicas }}
    behavior: currentReplicasIfHigher
  advanced:
    horizontalPodAutoscalerConfig:
      name: {{ include "coffee-rt.componentName" $ }}
      behavior:
        {{- toYaml .behavior | nindent 8 }}
  triggers:
    - type: cpu
      metricType: Utilization
      metadata:
        value: {{ .targetCPUUtilizationPercentage | quote }}
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: {{ $.root.Values.autoscaling.keda.prometheusAddress }}
        query: {{ $.scale.query | quote }}
        threshold: {{ $.scale.perPod | quote }}
        # A missing series is an error, not an empty backlog.
        ignoreNullValues: "false"
{{- end }}
{{- end }}
{{- end }}

{{/* (root): labels by which Prometheus tells the pods of this release. */}}
{{- define "coffee-rt.promSelector" -}}
{{- printf "namespace=\"%s\",release=\"%s\"" .Release.Namespace .Release.Name -}}
{{- end }}
