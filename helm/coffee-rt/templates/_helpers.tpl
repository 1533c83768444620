{{/*
Names, labels and what the pods of all processes share.

Most helpers take a dict of `root` (the template's own context $), `component` (order-api, worker, aggregator, fanout,
query-api, operator, migrate, valkey, postgresql) and, where they need the process's values, `values`.

What they need of the stores (addresses, limits, peers) is in _stores.tpl, what must add up in _checks.tpl.
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

{{/* (root, component, values, hashed): annotations and labels of a process's pods. The hash rolls them when the shared
settings change, or what the process mounts (`hashed`); its own settings are in the pod anyway. */}}
{{- define "coffee-rt.podMetadata" -}}
annotations:
  checksum/settings: {{ print (include "coffee-rt.settings" .root) (.hashed | default "") | sha256sum }}
  checksum/stores: {{ include "coffee-rt.storesChecksum" .root }}
  {{- with merge (dict) .values.podAnnotations .root.Values.commonAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "coffee-rt.podLabels" . | nindent 2 }}
{{- end }}

{{/* (root, component, values, volumes, token, account): a pod's spec but for its containers. `volumes` are the process's own;
`token` mounts the ServiceAccount's; `account` replaces it. */}}
{{- define "coffee-rt.podSpec" -}}
serviceAccountName: {{ .account | default (include "coffee-rt.serviceAccountName" .) }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "coffee-rt.podSecurityContext" .root | nindent 2 }}
{{- with .values.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if hasKey .values "topologySpreadConstraints" }}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- include "coffee-rt.spread" . | trim | nindent 2 }}
  {{- end }}
{{- end }}
volumes:
  - name: tmp
    emptyDir:
      sizeLimit: 64Mi
  {{- with include "coffee-rt.authorityVolumes" .root }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- with .volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* (root, component): over zones and nodes as evenly as it goes; a cluster with one node takes all pods all the same. */}}
{{- define "coffee-rt.spread" -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "coffee-rt.selectorLabels" $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* (root, component, values, mounts): image, security, stop, memory and mounts of a process's container. */}}
{{- define "coffee-rt.container" -}}
image: {{ include "coffee-rt.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "coffee-rt.containerSecurityContext" .root | nindent 2 }}
{{- with .values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- with include "coffee-rt.authorityMounts" .root }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- with .mounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* (values): traffic goes on arriving for a moment after a pod was told to stop; only then the drain begins. */}}
{{- define "coffee-rt.preStop" -}}
lifecycle:
  preStop:
    exec:
      command: [sleep, {{ .values.preStopSeconds | quote }}]
{{- end }}

{{/* Liveness asks no server: a dead database must not restart everything. Readiness says which part is not ready. */}}
{{- define "coffee-rt.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}

{{/* (root): the ConfigMap of all processes, as NAME: "value" lines. */}}
{{- define "coffee-rt.settings" -}}
{{- $settings := omit .Values.settings "redis" "database" "extra" -}}
COFFEE_RT_HTTP_HOST: "0.0.0.0"
COFFEE_RT_HTTP_PORT: "8000"
{{- include "coffee-rt.settingLines" (dict "prefix" "COFFEE_RT_" "settings" $settings) }}
{{- include "coffee-rt.settingLines" (dict "prefix" "COFFEE_RT_REDIS_" "settings" .Values.settings.redis) }}
{{- include "coffee-rt.settingLines" (dict "prefix" "COFFEE_RT_DATABASE_" "settings" .Values.settings.database) }}
{{- range $name, $value := .Values.settings.extra }}
{{ $name }}: {{ include "coffee-rt.settingText" $value | quote }}
{{- end }}
{{- end }}

{{/* (prefix, settings): camelCase keys as variables; an empty text is left to the program's default. */}}
{{- define "coffee-rt.settingLines" -}}
{{- range $key, $value := .settings }}
{{- $text := include "coffee-rt.settingText" $value }}
{{- if ne $text "" }}
{{ $.prefix }}{{ snakecase $key | upper }}: {{ $text | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Numbers of values.yaml are floats to Helm: 33554432 would be printed as 3.3554432e+07. */}}
{{- define "coffee-rt.settingText" -}}
{{- if kindIs "slice" . -}}
{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* (root, component, values): the variables of one process; the shared ones come from the ConfigMap. */}}
{{- define "coffee-rt.env" -}}
{{- $drain := sub .values.terminationGracePeriodSeconds (add .values.preStopSeconds 5) | int -}}
{{- if lt $drain 5 -}}
{{- fail (printf "%s: terminationGracePeriodSeconds %v less preStopSeconds %v less 5 to spare leaves %d s to drain; it needs 5" .component .values.terminationGracePeriodSeconds .values.preStopSeconds $drain) -}}
{{- end -}}
- name: COFFEE_RT_INSTANCE
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: COFFEE_RT_GRACE_SECONDS
  value: {{ $drain | quote }}
- name: COFFEE_RT_DATABASE_POOL_SIZE_MAX
  value: {{ .values.databasePoolSizeMax | int64 | quote }}
{{- $prefix := printf "COFFEE_RT_%s_" (.component | replace "-" "_" | upper) }}
{{- range $name, $value := include "coffee-rt.settingLines" (dict "prefix" $prefix "settings" (merge (dict) .values.settings (.settings | default dict))) | fromYaml }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- include "coffee-rt.storesEnv" .root }}
{{- include "coffee-rt.authorityEnv" .root }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (root): authorities of the stores' certificates, where a Secret holds one. asyncpg reads PGSSLROOTCERT. */}}
{{- define "coffee-rt.authorityEnv" -}}
{{- if .Values.tls.redisCaSecret }}
- name: COFFEE_RT_REDIS_CA_FILE
  value: /etc/coffee-rt/tls/redis/ca.crt
{{- end }}
{{- if .Values.tls.databaseCaSecret }}
- name: PGSSLROOTCERT
  value: /etc/coffee-rt/tls/database/ca.crt
{{- end }}
{{- end }}

{{- define "coffee-rt.authorityVolumes" -}}
{{- range $store, $secret := dict "redis" .Values.tls.redisCaSecret "database" .Values.tls.databaseCaSecret }}
{{- if $secret }}
- name: {{ $store }}-authority
  secret:
    secretName: {{ $secret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}
{{- end }}

{{- define "coffee-rt.authorityMounts" -}}
{{- range $store, $secret := dict "redis" .Values.tls.redisCaSecret "database" .Values.tls.databaseCaSecret }}
{{- if $secret }}
- name: {{ $store }}-authority
  mountPath: /etc/coffee-rt/tls/{{ $store }}
  readOnly: true
{{- end }}
{{- end }}
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
the slow way down (behavior) covers the moment between. */}}{{- define "coffee-rt.autoscaler" -}}
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
              app_kubernetes_io_instance: {{ $.root.Release.Name }}
        target:
          type: AverageValue
          averageValue: {{ $.scale.perPod | quote }}
    {{- end }}
  behavior:
    {{- toYaml .behavior | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, component): selector and strategy of a Deployment. A new pod is ready before an old one goes. */}}
{{- define "coffee-rt.rollout" -}}
revisionHistoryLimit: 3
strategy:
  type: RollingUpdate
  rollingUpdate:
    maxSurge: 25%
    maxUnavailable: 0
selector:
  matchLabels:
    {{- include "coffee-rt.selectorLabels" . | nindent 4 }}
{{- end }}

{{/* (root): the ConfigMap with view definitions; empty when there are none. */}}
{{- define "coffee-rt.viewsConfigMap" -}}
{{- if .Values.views.existingConfigMap -}}
{{ .Values.views.existingConfigMap }}
{{- else if .Values.views.definitions -}}
{{ include "coffee-rt.fullname" . }}-views
{{- end -}}
{{- end }}

{{/* (root): the Secret with the first API key. */}}
{{- define "coffee-rt.apiKeySecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-api-key" (include "coffee-rt.fullname" .)) -}}
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
{{- printf "namespace=\"%s\",pod=~\"%s-.*\"" .Release.Namespace (include "coffee-rt.fullname" .) -}}
{{- end }}
