{{/* What the pods of all processes share: labels and hashes, security, stop, probes, placement, mounts. */}}

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
